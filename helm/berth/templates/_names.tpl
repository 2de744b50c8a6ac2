{{/* Names, labels and images. Every template takes the root context unless it says otherwise. */}}

{{- define "berth.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 38 | trimSuffix "-" -}}
{{- end }}

{{/* Prefix of every object. The longest suffix has 25 characters, names of Services have at most 63. */}}
{{- define "berth.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 38 | trimSuffix "-" -}}
{{- else if contains (include "berth.name" .) .Release.Name -}}
{{- .Release.Name | trunc 38 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "berth.name" .) | trunc 38 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels that select the pods of one component. Context: root, component. */}}
{{- define "berth.selectorLabels" -}}
app.kubernetes.io/name: {{ include "berth.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object. Context: root, component. */}}
{{- define "berth.labels" -}}
{{ include "berth.selectorLabels" . }}
app.kubernetes.io/part-of: berth
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Metadata of an object. Context: root, component, and optionally name, namespace, labels, annotations. */}}
{{- define "berth.metadata" -}}
{{- $annotations := merge (dict) (.annotations | default dict) .root.Values.commonAnnotations -}}
name: {{ .name | default (printf "%s-%s" (include "berth.fullname" .root) .component) }}
namespace: {{ .namespace | default .root.Release.Namespace }}
labels:
  {{- $labels := include "berth.labels" . | fromYaml }}
  {{- toYaml (merge (dict) $labels (.labels | default dict)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Name of a component's objects. Context: root, component. */}}
{{- define "berth.component" -}}
{{- printf "%s-%s" (include "berth.fullname" .root) .component -}}
{{- end }}

{{/* DNS name of a Service of this release without the cluster's domain. Context: root, service. */}}
{{- define "berth.host" -}}
{{- printf "%s-%s.%s.svc" (include "berth.fullname" .root) .service .root.Release.Namespace -}}
{{- end }}

{{/* Image reference. Context: root, image. */}}
{{- define "berth.image" -}}
{{- $values := .root.Values -}}
{{- $registry := $values.global.imageRegistry | default .image.registry | default $values.image.registry -}}
{{- $name := .image.repository -}}
{{- if $registry }}{{ $name = printf "%s/%s" (trimSuffix "/" $registry) $name }}{{ end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default $values.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- define "berth.imagePullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range uniq . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Name of a component's service account. Context: root, component, values. */}}
{{- define "berth.serviceAccountName" -}}
{{- if .values.serviceAccount.create -}}
{{- .values.serviceAccount.name | default (include "berth.component" .) -}}
{{- else -}}
{{- .values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{/* Secret with the certificate of clients' ports. */}}
{{- define "berth.publicTlsSecret" -}}
{{- if .Values.tls.public.certManager.enabled -}}
{{- printf "%s-public-tls" (include "berth.fullname" .) -}}
{{- else -}}
{{- .Values.tls.public.existingSecret -}}
{{- end -}}
{{- end }}

{{/* Secret with the internal certificate of a component. Context: root, component, key (its name in values). */}}
{{- define "berth.internalTlsSecret" -}}
{{- if .root.Values.tls.internal.certManager.enabled -}}
{{- printf "%s-internal-tls" (include "berth.component" .) -}}
{{- else -}}
{{- get .root.Values.tls.internal.existingSecrets .key -}}
{{- end -}}
{{- end }}

{{/* Secret with the signing keys. */}}
{{- define "berth.signingKeysSecret" -}}
{{- if .Values.signingKeys.certManager.enabled -}}
{{- printf "%s-signing-key" (include "berth.fullname" .) -}}
{{- else if .Values.signingKeys.job.enabled -}}
{{- printf "%s-signing-keys" (include "berth.fullname" .) -}}
{{- else -}}
{{- .Values.signingKeys.existingSecret -}}
{{- end -}}
{{- end }}

{{/* Secret with the keys of the console's cookies. */}}
{{- define "berth.cookieKeysSecret" -}}
{{- if .Values.console.cookieKeys.job.enabled -}}
{{- printf "%s-cookie-keys" (include "berth.fullname" .) -}}
{{- else -}}
{{- .Values.console.cookieKeys.existingSecret -}}
{{- end -}}
{{- end }}

{{/* Host name of the console in browsers, without a port. */}}
{{- define "berth.consoleHost" -}}
{{- with .Values.console.url }}{{ regexReplaceAll ":[0-9]+$" (urlParse .).host "" }}{{ end -}}
{{- end }}

{{/* Path of the console in browsers, without a slash at its end. */}}
{{- define "berth.consolePrefix" -}}
{{- with .Values.console.url }}{{ trimSuffix "/" (urlParse .).path }}{{ end -}}
{{- end }}

{{/* host:port for connection strings. */}}
{{- define "berth.endpoint" -}}
{{- printf "%s:%d" (.Values.endpoint.host | default (include "berth.host" (dict "root" . "service" "spark-proxy"))) (int .Values.endpoint.port) -}}
{{- end }}

{{/* "true" if clients must use TLS: at spark-proxy itself, or at the gateway before it. */}}
{{- define "berth.clientsUseTls" -}}
{{- if kindIs "bool" .Values.endpoint.tls -}}
{{- .Values.endpoint.tls -}}
{{- else -}}
{{- or .Values.tls.public.enabled .Values.ingress.enabled .Values.grpcRoute.enabled -}}
{{- end -}}
{{- end }}

{{/* Lifetime of a Certificate. Context: a certManager section. */}}
{{- define "berth.certificateTimes" -}}
duration: {{ .duration }}
renewBefore: {{ .renewBefore }}
{{- end }}

{{/* Egress rule for DNS. */}}
{{- define "berth.egressDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

{{/* Whether a namespace has drivers of distributed engines; empty means no. Context: kubernetes, namespace. */}}
{{- define "berth.hasDrivers" -}}
{{- $namespace := .namespace -}}
{{- range .kubernetes.distributedDrivers }}{{ if eq .namespace $namespace }}y{{ end }}{{ end -}}
{{- end }}

{{/*
Configuration files of the services. The chart decides the keys that depend on the release (addresses,
certificates, Redis); all others come from `config` of the workload. docs/config.md describes them.
*/}}

{{/* A listener. Context: root, port, tls (directory of certificate and key, or empty), clientCa. */}}
{{- define "berth.listener" -}}
address: {{ printf "%s:%d" .root.Values.bindAddress (int .port) | quote }}
{{- if .tls }}
tls:
  cert: {{ .tls }}/tls.crt
  key: {{ .tls }}/tls.key
  {{- if .clientCa }}
  client_ca: {{ .clientCa }}
  {{- end }}
{{- else }}
insecure: true
{{- end }}
{{- end }}

{{/* Directory of the certificate of clients' ports; empty for plaintext. */}}
{{- define "berth.publicTlsDir" -}}
{{- if .Values.tls.public.enabled }}/etc/berth/tls/public{{ end -}}
{{- end }}

{{/* Directory of the internal certificate; empty for plaintext. */}}
{{- define "berth.internalTlsDir" -}}
{{- if ne .Values.tls.internal.mode "plaintext" }}/etc/berth/tls/internal{{ end -}}
{{- end }}

{{/* How a service reads the key set of token-issuer. */}}
{{- define "berth.keySet" -}}
{{- $host := include "berth.host" (dict "root" . "service" "token-issuer-internal") -}}
{{- if eq .Values.tls.internal.mode "plaintext" }}
location: http://{{ $host }}:8084/.well-known/jwks.json
insecure: true
{{- else }}
location: https://{{ $host }}:8084/.well-known/jwks.json
tls:
  ca: /etc/berth/tls/internal/ca.crt
{{- end }}
{{- end }}

{{/* How a service calls the internal port of session-manager. */}}
{{- define "berth.manager" -}}
{{- $host := include "berth.host" (dict "root" . "service" "session-manager-internal") -}}
{{- if eq .Values.tls.internal.mode "plaintext" }}
uri: http://{{ $host }}:8082
insecure: true
{{- else }}
uri: https://{{ $host }}:8082
tls:
  ca: /etc/berth/tls/internal/ca.crt
  {{- if eq .Values.tls.internal.mode "certificates" }}
  cert: /etc/berth/tls/internal/tls.crt
  key: /etc/berth/tls/internal/tls.key
  {{- end }}
{{- if eq .Values.tls.internal.mode "tokens" }}
token_file: /var/run/secrets/berth/token
{{- end }}
{{- end }}
{{- end }}

{{- define "berth.telemetry" -}}
{{- with .Values.telemetry -}}
format: {{ .format }}
level: {{ .level | quote }}
sample_ratio: {{ .sampleRatio }}
{{- with .otlpEndpoint }}
otlp_endpoint: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name that session-manager finds in a caller's certificate or token. Context: root, component, values, key. */}}
{{- define "berth.callerName" -}}
{{- if eq .root.Values.tls.internal.mode "tokens" -}}
system:serviceaccount:{{ .root.Release.Namespace }}:{{ include "berth.serviceAccountName" . }}
{{- else -}}
{{- get .root.Values.tls.internal.allowedNames .key | default (include "berth.host" (dict "root" .root "service" (printf "%s-internal" .component))) -}}
{{- end -}}
{{- end }}

{{- define "berth.internalCallers" -}}
{{- $mode := .Values.tls.internal.mode -}}
{{- if ne $mode "plaintext" -}}
allow:
  RouteService: [{{ include "berth.callerName" (dict "root" . "component" "spark-proxy" "values" .Values.sparkProxy "key" "sparkProxy") | quote }}]
  TokenLedger: [{{ include "berth.callerName" (dict "root" . "component" "token-issuer" "values" .Values.tokenIssuer "key" "tokenIssuer") | quote }}]
{{- if eq $mode "tokens" }}
{{- with .Values.tls.internal.tokens }}
tokens:
  issuer: {{ .issuer | quote }}
  audience: {{ .audience | quote }}
  keys:
    {{- if .jwks.existingConfigMap }}
    location: /etc/berth/cluster-keys/jwks.json
    {{- else }}
    tls:
      ca: /etc/berth/cluster-ca/ca.crt
    {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The URL of Redis; empty if it comes from a Secret. */}}
{{- define "berth.redisUrl" -}}
{{- if .Values.redis.bundled.enabled -}}
redis://{{ include "berth.host" (dict "root" . "service" "redis") }}:6379
{{- else -}}
{{- .Values.redis.url -}}
{{- end -}}
{{- end }}

{{- define "berth.store" -}}
{{- with include "berth.redisUrl" . }}
url: {{ . | quote }}
{{- end }}
key_prefix: {{ .Values.redis.keyPrefix | quote }}
{{- with .Values.redis.tls }}
{{- if .existingSecret }}
tls:
  {{- with .caKey }}
  ca: /etc/berth/tls/redis/{{ . }}
  {{- end }}
  {{- if .certKey }}
  certificate: /etc/berth/tls/redis/{{ .certKey }}
  key: /etc/berth/tls/redis/{{ .keyKey }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "berth.config.session-manager" -}}
{{- $public := dict "root" . "port" 8081 "tls" (include "berth.publicTlsDir" .) -}}
{{- $internal := dict "root" . "port" 8082 "tls" (include "berth.internalTlsDir" .) -}}
{{- if eq .Values.tls.internal.mode "certificates" }}{{ $_ := set $internal "clientCa" "/etc/berth/tls/internal/ca.crt" }}{{ end -}}
listen:
  public:
    {{- include "berth.listener" $public | nindent 4 }}
  internal:
    {{- include "berth.listener" $internal | nindent 4 }}
admin:
  address: {{ printf "%s:9081" .Values.bindAddress | quote }}
store:
  {{- include "berth.store" . | trim | nindent 2 }}
tokens:
  issuer: {{ .Values.tokens.issuer | quote }}
  audience: {{ .Values.tokens.audience | quote }}
  keys:
    {{- include "berth.keySet" . | trim | nindent 4 }}
{{- with include "berth.internalCallers" . }}
internal:
  {{- . | nindent 2 }}
{{- end }}
{{- if .Values.sessionManager.serviceAccounts.existingSecret }}
service_accounts_file: /etc/berth/accounts/{{ .Values.sessionManager.serviceAccounts.key }}
{{- end }}
{{- with .Values.sessionManager.kubernetes }}
{{- if .enabled }}
compute:
  kubernetes:
    namespaces: {{ toJson .namespaces }}
    anchor: {{ include "berth.fullname" $ }}-sessions
    {{- if .maxPods }}
    max_pods: {{ int .maxPods }}
    {{- end }}
    {{- if .maxStarting }}
    max_starting: {{ int .maxStarting }}
    {{- end }}
    {{- with .warmPodMaxAge }}
    warm_pod_max_age: {{ . }}
    {{- end }}
    {{- if and .distributedDrivers .networkPolicy.enabled }}
    isolated: true
    {{- end }}
{{- end }}
{{- end }}
telemetry:
  {{- include "berth.telemetry" . | nindent 2 }}
drain: {{ int .Values.sessionManager.drainSeconds }}s
{{- end }}

{{- define "berth.config.token-issuer" -}}
listen:
  grpc:
    {{- include "berth.listener" (dict "root" . "port" 8083 "tls" (include "berth.publicTlsDir" .)) | nindent 4 }}
  jwks:
    {{- include "berth.listener" (dict "root" . "port" 8084 "tls" (include "berth.internalTlsDir" .)) | nindent 4 }}
admin:
  address: {{ printf "%s:9083" .Values.bindAddress | quote }}
tokens:
  issuer: {{ .Values.tokens.issuer | quote }}
  audience: {{ .Values.tokens.audience | quote }}
keys:
  dir: /etc/berth/keys
public:
  endpoint: {{ include "berth.endpoint" . | quote }}
  tls: {{ include "berth.clientsUseTls" . }}
manager:
  {{- include "berth.manager" . | trim | nindent 2 }}
telemetry:
  {{- include "berth.telemetry" . | nindent 2 }}
drain: {{ int .Values.tokenIssuer.drainSeconds }}s
{{- end }}

{{- define "berth.config.spark-proxy" -}}
listen:
  address: {{ printf "%s:8085" .Values.bindAddress | quote }}
  workers: {{ int .Values.sparkProxy.workers }}
  {{- if .Values.tls.public.enabled }}
  tls:
    mode: {{ .Values.tls.public.sparkConnectMode }}
    cert: /etc/berth/tls/public/tls.crt
    key: /etc/berth/tls/public/tls.key
  {{- if eq .Values.tls.public.sparkConnectMode "auto" }}
  insecure: true
  {{- end }}
  {{- else }}
  tls:
    mode: "off"
  insecure: true
  {{- end }}
admin:
  address: {{ printf "%s:9085" .Values.bindAddress | quote }}
tokens:
  issuer: {{ .Values.tokens.issuer | quote }}
  audience: {{ .Values.tokens.audience | quote }}
  keys:
    {{- include "berth.keySet" . | trim | nindent 4 }}
manager:
  {{- include "berth.manager" . | trim | nindent 2 }}
drain:
  timeout: {{ int .Values.sparkProxy.drainSeconds }}s
telemetry:
  {{- include "berth.telemetry" . | nindent 2 }}
{{- end }}

{{/* How the console calls the API of a service. Context: root, service, port. */}}
{{- define "berth.api" -}}
{{- $host := include "berth.host" . -}}
{{- if .root.Values.tls.public.enabled }}
uri: https://{{ $host }}:{{ int .port }}
{{- with .root.Values.console.apis }}
{{- if or .caKey .serverName }}
tls:
  {{- if .caKey }}
  ca: /etc/berth/tls/public/ca.crt
  {{- end }}
  {{- with .serverName }}
  server_name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- else }}
uri: http://{{ $host }}:{{ int .port }}
insecure: true
{{- end }}
{{- end }}

{{- define "berth.config.console" -}}
listen:
  {{- include "berth.listener" (dict "root" . "port" 8080 "tls" (include "berth.publicTlsDir" .)) | nindent 2 }}
admin:
  address: {{ printf "%s:9080" .Values.bindAddress | quote }}
{{- with .Values.console.url }}
public:
  url: {{ . | quote }}
  {{- if $.Values.console.insecureUrl }}
  insecure: true
  {{- end }}
{{- end }}
spark_connect:
  endpoint: {{ include "berth.endpoint" . | quote }}
  tls: {{ include "berth.clientsUseTls" . }}
manager:
  {{- include "berth.api" (dict "root" . "service" "session-manager" "port" .Values.sessionManager.service.port) | trim | nindent 2 }}
issuer:
  {{- include "berth.api" (dict "root" . "service" "token-issuer" "port" .Values.tokenIssuer.service.port) | trim | nindent 2 }}
sign_in:
  keys_dir: /etc/berth/cookie-keys
telemetry:
  {{- include "berth.telemetry" . | nindent 2 }}
drain: {{ int .Values.console.drainSeconds }}s
{{- end }}

{{/* The file of a component: the keys above and the operator's. Context: root, component, values. */}}
{{- define "berth.config" -}}
{{- $base := include (printf "berth.config.%s" .component) .root | fromYaml -}}
{{- if hasKey $base "Error" }}{{ fail (printf "configuration of %s: %s" .component $base.Error) }}{{ end -}}
{{- toYaml (mergeOverwrite $base (deepCopy .values.config)) -}}
{{- end }}

{{/*
Problems of `config`: keys that the chart sets itself. Context: value (name of the value), config, reserved
(key path = value to use instead).
*/}}
{{- define "berth.reservedKeys" -}}
{{- $context := . -}}
{{- range $path, $instead := .reserved }}
{{- $at := $context.config -}}
{{- $found := true -}}
{{- range $part := splitList "." $path }}
{{- if and $found (kindIs "map" $at) (hasKey $at $part) }}
{{- $at = get $at $part }}
{{- else }}
{{- $found = false }}
{{- end }}
{{- end }}
{{- if $found }}
{{ $context.value }}.{{ $path }}: set {{ $instead }} instead; the chart writes this key
{{- end }}
{{- end }}
{{- end }}

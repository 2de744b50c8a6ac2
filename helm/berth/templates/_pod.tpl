{{/*
Objects that each of the services has. Context of all: root, component (session-manager), values (its section),
key (name of that section), and where noted more.
*/}}

{{- define "berth.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "berth.metadata" (dict "root" .root "component" .component "name" (include "berth.serviceAccountName" .) "labels" .values.serviceAccount.labels "annotations" .values.serviceAccount.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{- define "berth.configMap" -}}
---
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "berth.metadata" . | nindent 2 }}
data:
  {{ .component }}.yaml: |
    {{- include "berth.config" . | nindent 4 }}
{{- end }}

{{- define "berth.podDisruptionBudget" -}}
{{- if .values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "berth.metadata" . | nindent 2 }}
spec:
  {{- if ne (toString .values.podDisruptionBudget.minAvailable) "" }}
  minAvailable: {{ .values.podDisruptionBudget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  {{- end }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "berth.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* A Service for clients. More context: port (its name, and its application protocol without TLS: HTTP/2 unless set). */}}
{{- define "berth.clientService" -}}
{{- $service := .values.service -}}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "berth.metadata" (dict "root" .root "component" .component "labels" $service.labels "annotations" $service.annotations) | nindent 2 }}
spec:
  type: {{ $service.type }}
  {{- with $service.loadBalancerClass }}
  loadBalancerClass: {{ . }}
  {{- end }}
  {{- with $service.loadBalancerSourceRanges }}
  loadBalancerSourceRanges:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if ne $service.type "ClusterIP" }}
  {{- with $service.externalTrafficPolicy }}
  externalTrafficPolicy: {{ . }}
  {{- end }}
  {{- end }}
  {{- with $service.sessionAffinity }}
  sessionAffinity: {{ . }}
  {{- end }}
  {{- with $service.ipFamilyPolicy }}
  ipFamilyPolicy: {{ . }}
  {{- end }}
  {{- with $service.ipFamilies }}
  ipFamilies:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $service.trafficDistribution }}
  trafficDistribution: {{ . }}
  {{- end }}
  selector:
    {{- include "berth.selectorLabels" . | nindent 4 }}
  ports:
    - name: {{ .port.name }}
      port: {{ $service.port }}
      targetPort: {{ .port.name }}
      protocol: TCP
      appProtocol: {{ ternary "https" (.port.plaintext | default "kubernetes.io/h2c") .root.Values.tls.public.enabled }}
      {{- if and (ne $service.type "ClusterIP") $service.nodePort }}
      nodePort: {{ $service.nodePort }}
      {{- end }}
{{- end }}

{{/* A Service inside Berth: the internal port, if there is one, and metrics. More context: port (or nothing), admin. */}}
{{- define "berth.internalService" -}}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "berth.metadata" (dict "root" .root "component" .component "name" (printf "%s-internal" (include "berth.component" .)) "labels" (dict "berth.dev/service" "internal")) | nindent 2 }}
spec:
  type: ClusterIP
  {{- with .values.service.ipFamilyPolicy }}
  ipFamilyPolicy: {{ . }}
  {{- end }}
  {{- with .values.service.ipFamilies }}
  ipFamilies:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  selector:
    {{- include "berth.selectorLabels" . | nindent 4 }}
  ports:
    {{- with .port }}
    - name: {{ .name }}
      port: {{ .number }}
      targetPort: {{ .name }}
      protocol: TCP
      appProtocol: {{ ternary .plaintext "https" (eq $.root.Values.tls.internal.mode "plaintext") }}
    {{- end }}
    - name: admin
      port: {{ .admin }}
      targetPort: admin
      protocol: TCP
      appProtocol: http
{{- end }}

{{/* Volume of a certificate. Context: name, secret, certKey, keyKey, caKey (each may be empty). */}}
{{- define "berth.tlsVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
      {{- if .certKey }}
      - {key: {{ .certKey | quote }}, path: tls.crt}
      - {key: {{ .keyKey | quote }}, path: tls.key}
      {{- end }}
      {{- if .caKey }}
      - {key: {{ .caKey | quote }}, path: ca.crt}
      {{- end }}
{{- end }}

{{/* Certificates and tokens that the values ask for. */}}
{{- define "berth.volumes" -}}
{{- $tls := .root.Values.tls -}}
- name: config
  configMap:
    name: {{ include "berth.component" . }}
{{- if $tls.public.enabled }}
{{- /* The console is also a client of these ports. */}}
{{- $caKey := ternary .root.Values.console.apis.caKey "" (eq .key "console") }}
{{ include "berth.tlsVolume" (dict "name" "tls-public" "secret" (include "berth.publicTlsSecret" .root) "certKey" $tls.public.certKey "keyKey" $tls.public.keyKey "caKey" $caKey) }}
{{- end }}
{{- if eq .key "console" }}
{{- /* It calls no internal port. */}}
{{- else if eq $tls.internal.mode "certificates" }}
{{ include "berth.tlsVolume" (dict "name" "tls-internal" "secret" (include "berth.internalTlsSecret" .) "certKey" $tls.internal.certKey "keyKey" $tls.internal.keyKey "caKey" $tls.internal.caKey) }}
{{- else if eq $tls.internal.mode "tokens" }}
{{- if eq .key "sparkProxy" }}
{{ include "berth.tlsVolume" (dict "name" "tls-internal" "secret" (include "berth.internalTlsSecret" (dict "root" .root "component" "session-manager" "key" "sessionManager")) "caKey" $tls.internal.caKey) }}
{{- else }}
{{ include "berth.tlsVolume" (dict "name" "tls-internal" "secret" (include "berth.internalTlsSecret" .) "certKey" $tls.internal.certKey "keyKey" $tls.internal.keyKey "caKey" $tls.internal.caKey) }}
{{- end }}
{{- if ne .key "sessionManager" }}
- name: service-token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          audience: {{ $tls.internal.tokens.audience | quote }}
          expirationSeconds: {{ int $tls.internal.tokens.expirationSeconds }}
          path: token
{{- end }}
{{- end }}
{{- end }}

{{- define "berth.mounts" -}}
{{- $tls := .root.Values.tls -}}
- {name: config, mountPath: /etc/berth/config, readOnly: true}
{{- if $tls.public.enabled }}
- {name: tls-public, mountPath: /etc/berth/tls/public, readOnly: true}
{{- end }}
{{- if and (ne $tls.internal.mode "plaintext") (ne .key "console") }}
- {name: tls-internal, mountPath: /etc/berth/tls/internal, readOnly: true}
{{- end }}
{{- if and (eq $tls.internal.mode "tokens") (ne .key "sessionManager") (ne .key "console") }}
- {name: service-token, mountPath: /var/run/secrets/berth, readOnly: true}
{{- end }}
{{- end }}

{{- define "berth.affinity" -}}
{{- $preset := .values.podAntiAffinity -}}
{{- if .values.affinity }}
affinity:
  {{- toYaml .values.affinity | nindent 2 }}
{{- else if ne $preset "none" }}
affinity:
  podAntiAffinity:
    {{- if eq $preset "hard" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "berth.selectorLabels" . | nindent 12 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "berth.selectorLabels" . | nindent 14 }}
    {{- end }}
{{- end }}
{{- end }}

{{/* Settings of a pod that are passed on as they are. Context: the section of the workload. */}}
{{- define "berth.placement" -}}
{{- range $field := list "nodeSelector" "tolerations" "topologySpreadConstraints" "hostAliases" "dnsConfig" }}
{{- with get $ $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range $field := list "priorityClassName" "runtimeClassName" "schedulerName" "dnsPolicy" }}
{{- with get $ $field }}
{{ $field }}: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "berth.probes" -}}
livenessProbe:
  httpGet: {path: /livez, port: admin}
  {{- toYaml .values.livenessProbe | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  {{- toYaml .values.readinessProbe | nindent 2 }}
{{- end }}

{{/*
The Deployment. More context: ports (list of name, number), env, volumes and mounts (lists), automount (whether
the pod has a token of the API server).
*/}}
{{- define "berth.deployment" -}}
{{- $v := .values -}}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "berth.metadata" (dict "root" .root "component" .component "labels" $v.labels "annotations" $v.annotations) | nindent 2 }}
spec:
  {{- if not (dig "autoscaling" "enabled" false $v) }}
  replicas: {{ int $v.replicas }}
  {{- end }}
  revisionHistoryLimit: {{ int .root.Values.revisionHistoryLimit }}
  strategy:
    {{- toYaml $v.updateStrategy | nindent 4 }}
  selector:
    matchLabels:
      {{- include "berth.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- /* No version of the chart here: it would restart pods that have not changed. */}}
        {{- toYaml (merge (dict) (include "berth.selectorLabels" . | fromYaml) $v.podLabels .root.Values.commonLabels) | nindent 8 }}
      annotations:
        checksum/config: {{ include "berth.config" . | sha256sum }}
        {{- with $v.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "berth.imagePullSecrets" .root | nindent 6 }}
      serviceAccountName: {{ include "berth.serviceAccountName" . }}
      automountServiceAccountToken: {{ .automount }}
      enableServiceLinks: false
      # preStop, the drain of config, and 10 s to exit.
      terminationGracePeriodSeconds: {{ add (int $v.preStopSeconds) (int $v.drainSeconds) 10 }}
      securityContext:
        {{- toYaml $v.podSecurityContext | nindent 8 }}
      {{- include "berth.affinity" . | nindent 6 }}
      {{- include "berth.placement" $v | nindent 6 }}
      {{- with $v.initContainers }}
      initContainers:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "berth.image" (dict "root" .root "image" $v.image) | quote }}
          imagePullPolicy: {{ $v.image.pullPolicy | default .root.Values.image.pullPolicy }}
          {{- with $v.command }}
          command: {{ toJson . }}
          {{- end }}
          args:
            - --config
            - /etc/berth/config/{{ .component }}.yaml
            {{- with $v.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with concat .env $v.extraEnv }}
          env:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with $v.extraEnvFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            {{- range .ports }}
            - {name: {{ .name }}, containerPort: {{ .number }}, protocol: TCP}
            {{- end }}
          {{- include "berth.probes" . | nindent 10 }}
          {{- if int $v.preStopSeconds }}
          # New connections arrive until every node knows that the pod is leaving.
          lifecycle:
            preStop:
              sleep: {seconds: {{ int $v.preStopSeconds }}}
          {{- end }}
          securityContext:
            {{- toYaml $v.securityContext | nindent 12 }}
          {{- with $v.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          volumeMounts:
            {{- include "berth.mounts" . | nindent 12 }}
            {{- with concat .mounts $v.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
        {{- with $v.extraContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
        {{- include "berth.volumes" . | nindent 8 }}
        {{- with concat .volumes $v.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end }}

{{/*
Combinations of values that the schema cannot express. All problems are reported at once, each with its fix.
*/}}

{{- define "berth.checkValues" -}}
{{- $found := concat (include "berth.problemsOfSecrets" . | splitList "\n") (include "berth.problemsOfNetworks" . | splitList "\n") (include "berth.problemsOfConfig" . | splitList "\n") (include "berth.problemsOfConsole" . | splitList "\n") -}}
{{- $problems := list -}}
{{- range $found }}
{{- with trim . }}{{ $problems = append $problems . }}{{ end }}
{{- end }}
{{- if $problems -}}
{{- fail (printf "\n\nThe values of %s cannot be used:\n  - %s\n" .Release.Name (join "\n  - " $problems)) -}}
{{- end -}}
{{- end }}

{{/* Two sources of which exactly one must be set. Context: value, existing, certManager, needed. */}}
{{- define "berth.problemsOfSource" -}}
{{- if and .existing .certManager.enabled }}
{{ .value }}: existingSecret and certManager.enabled exclude each other
{{- else if and (not .existing) (not .certManager.enabled) }}
{{ .value }}: {{ .needed }}
{{- end }}
{{- if and .certManager.enabled (not .certManager.issuerRef.name) }}
{{ .value }}.certManager.issuerRef.name: required; the cert-manager issuer that signs
{{- end }}
{{- end }}

{{- define "berth.problemsOfSecrets" -}}
{{- $v := .Values -}}
{{- with $v.signingKeys }}
{{- $sources := compact (list .existingSecret (ternary "job" "" .job.enabled) (ternary "certManager" "" .certManager.enabled)) }}
{{- if not $sources }}
signingKeys: set job.enabled=true, which creates the key, or existingSecret
{{- else if gt (len $sources) 1 }}
signingKeys: existingSecret, job.enabled and certManager.enabled exclude each other
{{- end }}
{{- if and .certManager.enabled (not .certManager.issuerRef.name) }}
signingKeys.certManager.issuerRef.name: required; the cert-manager issuer that signs
{{- end }}
{{- end }}
{{- if $v.tls.public.enabled }}
{{- include "berth.problemsOfSource" (dict "value" "tls.public" "existing" $v.tls.public.existingSecret "certManager" $v.tls.public.certManager "needed" "set existingSecret to a TLS Secret for endpoint.host, or certManager.enabled, or enabled=false for plaintext") }}
{{- end }}
{{- with $v.tls.internal }}
{{- if ne .mode "plaintext" }}
{{- $secrets := list "sessionManager" "tokenIssuer" }}
{{- if eq .mode "certificates" }}{{ $secrets = append $secrets "sparkProxy" }}{{ end }}
{{- range $secret := $secrets }}
{{- include "berth.problemsOfSource" (dict "value" (printf "tls.internal (%s)" $secret) "existing" (get $v.tls.internal.existingSecrets $secret) "certManager" $v.tls.internal.certManager "needed" (printf "set existingSecrets.%s, or certManager.enabled, or mode=plaintext for a trial" $secret)) }}
{{- end }}
{{- end }}
{{- if and (eq .mode "tokens") (not .tokens.issuer) }}
tls.internal.tokens.issuer: required with mode=tokens; `kubectl get --raw /.well-known/openid-configuration` shows it
{{- end }}
{{- end }}
{{- with $v.redis }}
{{- $sources := compact (list .url (ternary "bundled" "" .bundled.enabled) (and .existingSecret .urlKey)) }}
{{- if not $sources }}
redis: set url, or existingSecret with urlKey, or bundled.enabled=true for a trial
{{- else if gt (len $sources) 1 }}
redis: url, urlKey and bundled.enabled exclude each other
{{- end }}
{{- if and (or .urlKey .usernameKey .passwordKey .sentinelUsernameKey .sentinelPasswordKey) (not .existingSecret) }}
redis.existingSecret: required by the names of its keys (urlKey, passwordKey, …)
{{- end }}
{{- if and .url (contains "@" .url) }}
redis.url: contains a password; put it into existingSecret with passwordKey or urlKey
{{- end }}
{{- if and .bundled.enabled .existingSecret }}
redis.bundled: has no password and no user; remove existingSecret
{{- end }}
{{- if and .bundled.enabled (not $v.networkPolicy.enabled) }}
redis.bundled: needs networkPolicy.enabled, which alone protects it
{{- end }}
{{- if and .tls.existingSecret .url (not (hasPrefix "rediss" .url)) }}
redis.tls: needs a rediss:// URL
{{- end }}
{{- if ne (empty .tls.certKey) (empty .tls.keyKey) }}
redis.tls: certKey and keyKey belong together
{{- end }}
{{- end }}
{{- end }}

{{- define "berth.problemsOfNetworks" -}}
{{- $v := .Values -}}
{{- with $v.sessionManager.kubernetes }}
{{- if .enabled }}
{{- if not .namespaces }}
sessionManager.kubernetes.namespaces: name at least one namespace for sessions
{{- end }}
{{- if has $.Release.Namespace .namespaces }}
sessionManager.kubernetes.namespaces: {{ $.Release.Namespace }} is the namespace of Berth itself; sessions need another one, where everything but them is denied
{{- end }}
{{- $accounts := list }}
{{- $kubernetes := . }}
{{- range .distributedDrivers }}
{{- $account := printf "%s/%s" .namespace .serviceAccount }}
{{- if not (has .namespace $kubernetes.namespaces) }}
sessionManager.kubernetes.distributedDrivers ({{ .cluster }}): namespace {{ .namespace }} is not in sessionManager.kubernetes.namespaces
{{- end }}
{{- if has $account $accounts }}
sessionManager.kubernetes.distributedDrivers ({{ .cluster }}): serviceAccount {{ .serviceAccount }} is that of another cluster; each needs its own
{{- end }}
{{- if or (eq .serviceAccount "default") (eq .serviceAccount (printf "%s-workers" (include "berth.fullname" $))) }}
sessionManager.kubernetes.distributedDrivers ({{ .cluster }}): serviceAccount {{ .serviceAccount }} is an account without rights; name another
{{- end }}
{{- $accounts = append $accounts $account }}
{{- end }}
{{- if and .distributedDrivers .networkPolicy.enabled (not .networkPolicy.apiServer) }}
sessionManager.kubernetes.networkPolicy.apiServer: required by distributedDrivers; `kubectl get endpoints kubernetes` and `kubectl get service kubernetes` show the addresses
{{- end }}
{{- end }}
{{- end }}
{{- if and (or $v.ingress.enabled $v.grpcRoute.enabled $v.tlsRoute.enabled) (not $v.endpoint.host) }}
endpoint.host: required with ingress, grpcRoute and tlsRoute; connection strings contain it
{{- end }}
{{- if $v.ingress.enabled }}
{{- if not $v.ingress.host }}
ingress.host: required
{{- end }}
{{- end }}
{{- if and $v.grpcRoute.enabled (not $v.grpcRoute.parentRefs) }}
grpcRoute.parentRefs: name the Gateway
{{- end }}
{{- with $v.tlsRoute }}
{{- if .enabled }}
{{- if not .parentRefs }}
tlsRoute.parentRefs: name the Gateway
{{- end }}
{{- if not (or .hostnames.sparkProxy .hostnames.sessionManager .hostnames.tokenIssuer) }}
tlsRoute.hostnames: set the host of at least one service
{{- end }}
{{- if not $v.tls.public.enabled }}
tlsRoute: passes TLS through to the services, so it needs tls.public.enabled
{{- end }}
{{- end }}
{{- end }}
{{- with $v.sparkProxy.autoscaling }}
{{- if .enabled }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
sparkProxy.autoscaling: minReplicas must not exceed maxReplicas
{{- end }}
{{- if not (or .targetCPUUtilizationPercentage .openCalls.target) }}
sparkProxy.autoscaling: set targetCPUUtilizationPercentage or openCalls.target
{{- end }}
{{- if and .targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" $v.sparkProxy.resources)) }}
sparkProxy.resources.requests.cpu: required by autoscaling on CPU
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $workload := dict "sessionManager" $v.sessionManager "tokenIssuer" $v.tokenIssuer "sparkProxy" $v.sparkProxy }}
{{- if and (not $workload.serviceAccount.create) (not $workload.serviceAccount.name) (or (eq $v.tls.internal.mode "tokens") (and (eq $name "sessionManager") $v.sessionManager.kubernetes.enabled)) }}
{{ $name }}.serviceAccount: set name or create=true; the account `default` of the namespace must not get rights
{{- end }}
{{- end }}
{{- with $v.helmTest }}
{{- if and .enabled (not .existingSecret) }}
helmTest.existingSecret: required; a Secret with the service-account key of the test
{{- end }}
{{- end }}
{{- end }}

{{- define "berth.problemsOfConfig" -}}
{{- $internal := "tls.internal" -}}
{{- include "berth.reservedKeys" (dict "value" "sessionManager.config" "config" .Values.sessionManager.config "reserved" (dict
  "listen" "tls and bindAddress" "admin" "bindAddress" "store.url" "redis" "store.username" "redis.existingSecret" "store.password" "redis.existingSecret"
  "store.sentinel_username" "redis.existingSecret" "store.sentinel_password" "redis.existingSecret" "store.tls" "redis.tls" "store.key_prefix" "redis.keyPrefix"
  "tokens.issuer" "tokens.issuer" "tokens.audience" "tokens.audience" "tokens.keys.location" $internal "tokens.keys.tls" $internal "tokens.keys.insecure" $internal
  "internal" $internal "service_accounts_file" "sessionManager.serviceAccounts" "compute.kubernetes" "sessionManager.kubernetes" "drain" "sessionManager.drainSeconds")) }}
{{- include "berth.reservedKeys" (dict "value" "tokenIssuer.config" "config" .Values.tokenIssuer.config "reserved" (dict
  "listen" "tls and bindAddress" "admin" "bindAddress" "tokens.issuer" "tokens.issuer" "tokens.audience" "tokens.audience"
  "keys.dir" "signingKeys" "keys.signing" "signingKeys" "keys.published" "signingKeys" "public" "endpoint"
  "manager.uri" $internal "manager.tls" $internal "manager.token_file" $internal "manager.insecure" $internal "drain" "tokenIssuer.drainSeconds")) }}
{{- include "berth.reservedKeys" (dict "value" "sparkProxy.config" "config" .Values.sparkProxy.config "reserved" (dict
  "listen.address" "bindAddress" "listen.tls" "tls.public" "listen.insecure" "tls.public" "listen.workers" "sparkProxy.workers" "admin" "bindAddress"
  "tokens.issuer" "tokens.issuer" "tokens.audience" "tokens.audience" "tokens.keys.location" $internal "tokens.keys.tls" $internal "tokens.keys.insecure" $internal
  "manager.uri" $internal "manager.tls" $internal "manager.token_file" $internal "manager.insecure" $internal "drain" "sparkProxy.drainSeconds")) }}
{{- end }}

{{- define "berth.problemsOfConsole" -}}
{{- $v := .Values -}}
{{- with $v.console }}
{{- if .enabled }}
{{- if and .cookieKeys.existingSecret .cookieKeys.job.enabled }}
console.cookieKeys: existingSecret and job.enabled exclude each other
{{- else if not (or .cookieKeys.existingSecret .cookieKeys.job.enabled) }}
console.cookieKeys: set job.enabled=true, which creates the key, or existingSecret
{{- end }}
{{- $providers := dig "sign_in" "providers" list .config }}
{{- if and $providers (not .url) }}
console.url: required with console.config.sign_in.providers; identity providers send browsers back to it
{{- end }}
{{- if and (or .ingress.enabled .httpRoute.enabled) (not .url) }}
console.url: required with console.ingress and console.httpRoute; they get its host and path
{{- end }}
{{- $isHttp := regexMatch "^http://" .url -}}
{{- $isLoopback := regexMatch "^http://(localhost|127\\.[0-9.]+)(:|/|$)" .url }}
{{- if and $isHttp (not $isLoopback) (not .insecureUrl) }}
console.url: must begin with https://, or set insecureUrl=true; then keys and cookies of sign-ins can be read on the network
{{- end }}
{{- if and .insecureUrl (or (not $isHttp) $isLoopback) }}
console.insecureUrl: has no effect with this url; remove it
{{- end }}
{{- $limits := dig "limits" dict .config }}
{{- if and (or .ingress.enabled .httpRoute.enabled) (not (or (dig "trusted_proxies" list $limits) (dig "shared_addresses" list $limits))) }}
console.config.limits: set trusted_proxies to the addresses of the Ingress or Gateway, or shared_addresses; else all people share the limits of its address, and wrong credentials of one lock out all
{{- end }}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) }}
console.httpRoute.parentRefs: name the Gateway
{{- end }}
{{- if and $v.networkPolicy.enabled (or $providers $v.telemetry.otlpEndpoint) (not $v.networkPolicy.egress.console) }}
networkPolicy.egress.console: required with identity providers and telemetry.otlpEndpoint; allow their addresses
{{- end }}
{{- with .autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
console.autoscaling: minReplicas must not exceed maxReplicas
{{- end }}
{{- if and .enabled (not (dig "requests" "cpu" "" $v.console.resources)) }}
console.resources.requests.cpu: required by autoscaling on CPU
{{- end }}
{{- end }}
{{- end }}
{{- include "berth.reservedKeys" (dict "value" "console.config" "config" .config "reserved" (dict
  "listen" "tls and bindAddress" "admin" "bindAddress" "public" "console.url" "spark_connect.endpoint" "endpoint" "spark_connect.tls" "endpoint"
  "manager.uri" "console.apis" "manager.tls" "console.apis" "manager.insecure" "tls.public"
  "issuer.uri" "console.apis" "issuer.tls" "console.apis" "issuer.insecure" "tls.public"
  "sign_in.keys_dir" "console.cookieKeys" "drain" "console.drainSeconds")) }}
{{- end }}
{{- end }}

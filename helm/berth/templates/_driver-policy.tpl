{{/*
What the account of a driver may do with pods, as CEL. The API server puts the name and uid of the pod whose token is
used into the request; the pod is <session>-g<generation>, so a driver cannot claim the session of another.
Context: driver, workers (the account of workers).
*/}}

{{- define "berth.celList" -}}
[{{ range $index, $text := . }}{{ if $index }}, {{ end }}'{{ $text }}'{{ end }}]
{{- end }}

{{- define "berth.driverPolicy" -}}
{{- $d := .driver -}}
variables:
  - name: pod
    expression: >-
      'authentication.kubernetes.io/pod-name' in request.userInfo.extra
      ? request.userInfo.extra['authentication.kubernetes.io/pod-name'][0] : ''
  - name: uid
    expression: >-
      'authentication.kubernetes.io/pod-uid' in request.userInfo.extra
      ? request.userInfo.extra['authentication.kubernetes.io/pod-uid'][0] : ''
  - name: plain
    expression: "!has(request.subResource) || request.subResource == ''"
  - name: creates
    expression: variables.plain && request.operation == 'CREATE'
  - name: labels
    expression: "has(object.metadata.labels) ? object.metadata.labels : {}"
  - name: owners
    expression: "has(object.metadata.ownerReferences) ? object.metadata.ownerReferences : []"
  - name: worker
    expression: object.spec.containers[0]
  - name: limits
    expression: variables.worker.?resources.?limits.orValue({})
validations:
  - message: the token of a driver must be bound to its pod
    expression: variables.pod != '' && variables.uid != ''
  - message: a driver creates and deletes pods, and does nothing else with them
    expression: variables.plain && request.operation in ['CREATE', 'DELETE']
  - message: a driver deletes only its own workers
    expression: >-
      request.operation != 'DELETE' ||
      (has(oldObject.metadata.ownerReferences) &&
       oldObject.metadata.ownerReferences.exists(o, o.kind == 'Pod' && o.uid == variables.uid))
  - message: the name of a worker must begin with the name of its driver and a hyphen
    expression: >-
      !variables.creates || (has(object.metadata.name) && object.metadata.name.startsWith(variables.pod + '-'))
  - message: "a worker must have the labels berth/role=worker, berth/cluster, and berth/session and berth/generation of its driver"
    expression: >-
      !variables.creates ||
      (variables.labels[?'berth/role'].orValue('') == 'worker' &&
       variables.labels[?'berth/cluster'].orValue('') == '{{ $d.cluster }}' &&
       variables.labels[?'berth/session'].orValue('') + '-g' + variables.labels[?'berth/generation'].orValue('') == variables.pod)
  - message: the driver must be the only owner of a worker
    expression: >-
      !variables.creates ||
      (variables.owners.size() == 1 &&
       variables.owners.all(o, o.apiVersion == 'v1' && o.kind == 'Pod' && o.name == variables.pod && o.uid == variables.uid))
  - message: a worker must not have finalizers or annotations
    expression: >-
      !variables.creates ||
      (object.metadata.?finalizers.orValue([]).size() == 0 &&
       object.metadata.?annotations.orValue({}).all(key, key in {{ include "berth.celList" (prepend ($d.annotations | default list) "kubernetes.io/limit-ranger") }}))
  - message: a worker must use the account {{ .workers }}, without a token
    expression: >-
      !variables.creates ||
      (object.spec.?serviceAccountName.orValue('') == '{{ .workers }}' &&
       object.spec.?automountServiceAccountToken.orValue(true) == false)
  - message: a worker has exactly one container
    expression: >-
      !variables.creates ||
      (object.spec.containers.size() == 1 && object.spec.?initContainers.orValue([]).size() == 0 &&
       object.spec.?ephemeralContainers.orValue([]).size() == 0)
  - message: "the image of a worker must be one of: {{ join ", " $d.images }}"
    expression: "!variables.creates || variables.worker.image in {{ include "berth.celList" $d.images }}"
  - message: a worker must not use other Secrets with registry credentials
    expression: >-
      !variables.creates ||
      object.spec.?imagePullSecrets.orValue([]).all(s, s.?name.orValue('') in {{ include "berth.celList" ($d.imagePullSecrets | default list) }})
  - message: "a worker must have limits of CPU and memory, at most {{ $d.maxCpu }} and {{ $d.maxMemory }}, and of nothing else"
    expression: >-
      !variables.creates ||
      ('cpu' in variables.limits && 'memory' in variables.limits &&
       variables.limits.all(key, key in ['cpu', 'memory', 'ephemeral-storage']) &&
       quantity(variables.limits['cpu']).compareTo(quantity('{{ $d.maxCpu }}')) <= 0 &&
       quantity(variables.limits['memory']).compareTo(quantity('{{ $d.maxMemory }}')) <= 0 &&
       !has(object.spec.resources) && object.spec.?resourceClaims.orValue([]).size() == 0)
  - message: a worker must not use namespaces or ports of its node
    expression: >-
      !variables.creates ||
      (!object.spec.?hostNetwork.orValue(false) && !object.spec.?hostPID.orValue(false) && !object.spec.?hostIPC.orValue(false) &&
       variables.worker.?ports.orValue([]).all(p, p.?hostPort.orValue(0) == 0 && !has(p.hostIP)))
  - message: volumes of a worker must be empty directories
    expression: >-
      !variables.creates ||
      (object.spec.?volumes.orValue([]).all(v, has(v.emptyDir)) && variables.worker.?volumeDevices.orValue([]).size() == 0)
  - message: the environment of a worker must not refer to other objects than the Secret of its driver
    expression: >-
      !variables.creates ||
      (variables.worker.?envFrom.orValue([]).size() == 0 &&
       variables.worker.?env.orValue([]).all(e, !has(e.valueFrom) || has(e.valueFrom.fieldRef) || has(e.valueFrom.resourceFieldRef) ||
         (has(e.valueFrom.secretKeyRef) && e.valueFrom.secretKeyRef.?name.orValue('') == variables.pod)))
  - message: a worker must run as a user other than root, with the seccomp profile RuntimeDefault
    expression: >-
      !variables.creates ||
      (object.spec.?securityContext.?runAsNonRoot.orValue(false) &&
       object.spec.?securityContext.?runAsUser.orValue(1) != 0 &&
       object.spec.?securityContext.?seccompProfile.?type.orValue('') == 'RuntimeDefault' &&
       object.spec.?securityContext.?sysctls.orValue([]).size() == 0 &&
       object.spec.?securityContext.?supplementalGroups.orValue([]).size() == 0 &&
       !object.spec.?securityContext.?seLinuxOptions.hasValue() &&
       !object.spec.?securityContext.?windowsOptions.hasValue() &&
       !object.spec.?securityContext.?appArmorProfile.hasValue())
  - message: "the container of a worker must have a read-only root file system and drop ALL capabilities, without privileges"
    expression: >-
      !variables.creates ||
      (variables.worker.?securityContext.?allowPrivilegeEscalation.orValue(true) == false &&
       variables.worker.?securityContext.?readOnlyRootFilesystem.orValue(false) &&
       !variables.worker.?securityContext.?privileged.orValue(false) &&
       variables.worker.?securityContext.?capabilities.?drop.orValue([]).exists(c, c == 'ALL') &&
       variables.worker.?securityContext.?capabilities.?add.orValue([]).size() == 0 &&
       variables.worker.?securityContext.?runAsNonRoot.orValue(true) &&
       variables.worker.?securityContext.?runAsUser.orValue(1) != 0 &&
       variables.worker.?securityContext.?procMount.orValue('Default') == 'Default' &&
       !variables.worker.?securityContext.?seccompProfile.hasValue() &&
       !variables.worker.?securityContext.?seLinuxOptions.hasValue() &&
       !variables.worker.?securityContext.?windowsOptions.hasValue() &&
       !variables.worker.?securityContext.?appArmorProfile.hasValue())
  # The kubelet runs these, and reaches what network policies deny to pods.
  - message: a worker must not have probes or lifecycle hooks
    expression: >-
      !variables.creates ||
      (!has(variables.worker.livenessProbe) && !has(variables.worker.readinessProbe) &&
       !has(variables.worker.startupProbe) && !has(variables.worker.lifecycle))
  - message: a worker must not choose its node, scheduler, runtime class, or priority
    expression: >-
      !variables.creates ||
      (object.spec.?nodeName.orValue('') == '' && !has(object.spec.runtimeClassName) &&
       object.spec.?schedulerName.orValue('default-scheduler') == 'default-scheduler' &&
       object.spec.?priorityClassName.orValue('') in {{ include "berth.celList" (prepend ($d.priorityClassNames | default list) "") }})
  - message: a worker must not tolerate other taints
    expression: >-
      !variables.creates ||
      object.spec.?tolerations.orValue([]).all(t, t.?key.orValue('') in {{ include "berth.celList" (concat (list "node.kubernetes.io/not-ready" "node.kubernetes.io/unreachable" "node.kubernetes.io/memory-pressure") ($d.tolerations | default list)) }})
  - message: a worker must end within 60 s, and must not be started again
    expression: >-
      !variables.creates ||
      (object.spec.?terminationGracePeriodSeconds.orValue(30) <= 60 &&
       object.spec.?restartPolicy.orValue('Always') == 'Never' && !has(variables.worker.restartPolicy))
{{- end }}

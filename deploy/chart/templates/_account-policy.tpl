{{- /*
Policy and binding, "name", of what one of meshd's accounts, "account" in "namespace", may write. With "hookWeight" they
are hooks. The agent's and that which uninstalls have one each: Helm deletes the agent's before the other's work begins.
*/ -}}
{{- define "meshd.accountPolicy" -}}
# What meshd's account may change of a Node: of its own, the meshd.dev annotations, and the condition
# NetworkUnavailable to False where it is there. Of others, nothing.
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ .name }}
  {{- with .hookWeight }}
  {{- include "meshd.hook" . | nindent 2 }}
  {{- end }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - apiGroups: [""]
        apiVersions: [v1]
        operations: [CREATE, UPDATE]
        resources: [nodes, nodes/status]
        scope: Cluster
  matchConditions:
    - name: meshd
      expression: >-
        request.userInfo.username == 'system:serviceaccount:{{ .namespace }}:{{ .account }}'
  variables:
    - name: tokenNode
      expression: >-
        has(request.userInfo.extra) && 'authentication.kubernetes.io/node-name' in request.userInfo.extra
          && size(request.userInfo.extra['authentication.kubernetes.io/node-name']) == 1
        ? request.userInfo.extra['authentication.kubernetes.io/node-name'][0] : ''
    - name: who
      expression: >-
        request.userInfo.username + (variables.tokenNode == '' ? ' (token bound to no node)'
          : ' (token bound to node ' + variables.tokenNode + ')')
    # The two objects as maps of whatever fields there are, so that fields of later versions count too.
    - name: before
      expression: "oldObject == null ? dyn({}) : dyn(oldObject)"
    - name: after
      expression: "dyn(object)"
    - name: oldAnnotations
      expression: >-
        has(variables.before.metadata) && has(variables.before.metadata.annotations)
        ? variables.before.metadata.annotations : {}
    - name: newAnnotations
      expression: "has(variables.after.metadata.annotations) ? variables.after.metadata.annotations : {}"
    - name: oldStatus
      expression: "has(variables.before.status) ? variables.before.status : {}"
    - name: newStatus
      expression: "has(variables.after.status) ? variables.after.status : {}"
    - name: oldConditions
      expression: "has(variables.oldStatus.conditions) ? variables.oldStatus.conditions : []"
    - name: newConditions
      expression: "has(variables.newStatus.conditions) ? variables.newStatus.conditions : []"
  validations:
    - expression: >-
        request.operation == 'UPDATE' && variables.tokenNode != '' && variables.tokenNode == request.name
      reason: Forbidden
      message: meshd's account may change no Node but the one that its token is bound to
      messageExpression: >-
        variables.who + ' may not write Node ' + request.name + ': meshd changes no Node but the one it runs on'
    # What the API server keeps itself is left out: versions, and who owns which field.
    - expression: >-
        request.operation != 'UPDATE'
          || (['labels', 'finalizers', 'ownerReferences'].all(f,
                (f in variables.before.metadata) == (f in variables.after.metadata)
                && (!(f in variables.after.metadata) || variables.before.metadata[f] == variables.after.metadata[f]))
              && variables.newAnnotations.all(k, k.startsWith('meshd.dev/')
                   || (k in variables.oldAnnotations && variables.oldAnnotations[k] == variables.newAnnotations[k]))
              && variables.oldAnnotations.all(k, k.startsWith('meshd.dev/') || k in variables.newAnnotations))
      reason: Forbidden
      message: meshd's account may change no metadata of a Node but the meshd.dev annotations
      messageExpression: >-
        variables.who + ' may not change labels, finalizers, owners or annotations of others of Node ' + request.name
        + ': meshd writes meshd.dev annotations only'
    - expression: >-
        request.operation != 'UPDATE'
          || (has(variables.before.spec) == has(variables.after.spec)
              && (!has(variables.after.spec) || variables.before.spec == variables.after.spec))
      reason: Forbidden
      message: meshd's account may change no spec of a Node
      messageExpression: >-
        variables.who + ' may not change the spec of Node ' + request.name + ': meshd writes meshd.dev annotations only'
    - expression: >-
        request.operation != 'UPDATE'
          || (variables.newStatus.all(f, f == 'conditions'
                || (f in variables.oldStatus && variables.oldStatus[f] == variables.newStatus[f]))
              && variables.oldStatus.all(f, f == 'conditions' || f in variables.newStatus)
              && variables.oldConditions.filter(c, c.type != 'NetworkUnavailable')
                 == variables.newConditions.filter(c, c.type != 'NetworkUnavailable')
              && size(variables.oldConditions) == size(variables.newConditions)
              && variables.newConditions.all(c, c.type != 'NetworkUnavailable' || c.status == 'False'
                   || variables.oldConditions.exists(o, o == c)))
      reason: Forbidden
      message: meshd's account may change no status of a Node, but set the condition NetworkUnavailable to False
      messageExpression: >-
        variables.who + ' may not change the status of Node ' + request.name
        + ': meshd sets the condition NetworkUnavailable to False where it is there, and nothing else'
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  {{- with .hookWeight }}
  {{- include "meshd.hook" . | nindent 2 }}
  {{- end }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end -}}

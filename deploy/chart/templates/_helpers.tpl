{{- define "meshd.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "meshd.labels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: meshd
{{- end -}}

{{- /* The host's folders as the agent sees them. */ -}}
{{- define "meshd.confDir" -}}/host/cni-conf{{- end -}}
{{- define "meshd.binDir" -}}/host/cni-bin{{- end -}}

{{- /*
meshd.toml. Values as JSON are values as TOML: texts, numbers, truths, and lists of them. What is no table comes
first, because in TOML all that follows a table's name is the table's.
*/ -}}
{{- define "meshd.toml" -}}
{{- range $key, $value := .Values.config }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}

[cni]
conflist = {{ printf "/etc/meshd/%s" .Values.cni.conflist | toJson }}
conf_dir = {{ include "meshd.confDir" . | toJson }}
bin_dir = {{ include "meshd.binDir" . | toJson }}
{{- range $table, $values := .Values.config }}
{{- if kindIs "map" $values }}

[{{ $table }}]
{{- range $key, $value := $values }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Runtimes that know cniVersions take the newest that they know of it; others would refuse 1.1.0. */ -}}
{{- define "meshd.conflist" -}}
{{- $own := dict "type" "meshd-cni" "capabilities" (dict "ips" true "mac" true) -}}
{{- $plugins := prepend .Values.cni.chained $own -}}
{{ dict "cniVersion" "1.0.0" "cniVersions" (list "1.0.0" "1.1.0") "name" "meshd" "plugins" $plugins | toPrettyJson }}
{{- end -}}

{{- /* Which node it is, and the API server for those who ask it before there is a way to its Service. */ -}}
{{- define "meshd.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | toString | quote }}
{{- end }}
{{- if .kubeconfig }}
- name: MESHD_API_SERVER_FROM
  value: {{ include "meshd.kubeconfig" $ }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The kubelet's own kubeconfig, where it says where the API server is. */ -}}
{{- define "meshd.kubeconfig" -}}/host/kubelet.conf{{- end -}}

{{- define "meshd.kubeconfigMount" -}}
{{- if .Values.apiServer.kubeconfig -}}
- name: kubeconfig
  mountPath: {{ include "meshd.kubeconfig" . }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "meshd.kubeconfigVolume" -}}
{{- with .Values.apiServer.kubeconfig -}}
- name: kubeconfig
  hostPath:
    path: {{ . }}
    type: File
{{- end }}
{{- end -}}

{{- define "meshd.agentEnv" -}}
{{- include "meshd.env" . }}
{{- range $name, $value := .Values.agent.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- /* Where SELinux is enforced, a confined container may neither write the host's folders nor serve a socket there. */ -}}
{{- define "meshd.seLinux" -}}
seLinuxOptions:
  level: s0
  type: spc_t
{{- end -}}

{{- /* Of the pods that clean a node, and of the one that waits for them. */ -}}
{{- define "meshd.uninstallPod" -}}
serviceAccountName: meshd-uninstall
enableServiceLinks: false
hostNetwork: true
dnsPolicy: Default
priorityClassName: system-node-critical
terminationGracePeriodSeconds: 2
{{- include "meshd.pullSecrets" . }}
nodeSelector:
  {{- toYaml .Values.nodeSelector | nindent 2 }}
tolerations:
  - operator: Exists
volumes:
  - name: config
    configMap:
      name: meshd-uninstall
  # Not the folders themselves: they are to be removed.
  - name: var-lib
    hostPath:
      path: /var/lib
  - name: run
    hostPath:
      path: /run
  - name: cni-bin
    hostPath:
      path: {{ .Values.cni.binDir }}
      type: DirectoryOrCreate
  - name: cni-conf
    hostPath:
      path: {{ .Values.cni.confDir }}
      type: DirectoryOrCreate
  {{- with include "meshd.kubeconfigVolume" . }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "meshd.uninstallContainer" -}}
image: {{ include "meshd.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command:
  - /usr/local/bin/meshd
  - uninstall
  - --namespace={{ .Release.Namespace }}
  - --timeout={{ .Values.uninstall.timeoutSeconds }}
  - --state-dir=/host/var/lib/meshd
  - --socket=/host/run/meshd/meshd.sock
  - --wireguard-socket-dir=/host/run/wireguard
env:
  {{- include "meshd.env" . | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN]
  {{- include "meshd.seLinux" . | nindent 2 }}
resources:
  requests:
    cpu: 10m
    memory: 16Mi
volumeMounts:
  - name: config
    mountPath: /etc/meshd
    readOnly: true
  - name: var-lib
    mountPath: /host/var/lib
  - name: run
    mountPath: /host/run
  - name: cni-bin
    mountPath: {{ include "meshd.binDir" . }}
  - name: cni-conf
    mountPath: {{ include "meshd.confDir" . }}
  {{- with include "meshd.kubeconfigMount" . }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "meshd.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "meshd.hook" -}}
annotations:
  helm.sh/hook: post-delete
  helm.sh/hook-weight: {{ . | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
labels:
  {{- include "meshd.labels" "meshd-uninstall" | nindent 2 }}
{{- end -}}

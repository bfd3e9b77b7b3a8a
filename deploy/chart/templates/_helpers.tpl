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

{{- define "meshd.conflist" -}}
{{- $plugins := prepend .Values.cni.chained (dict "type" "meshd-cni") -}}
{{ dict "cniVersion" "1.0.0" "name" "meshd" "plugins" $plugins | toPrettyJson }}
{{- end -}}

{{- /* For containers that ask the API server before there is a way to its Service. */ -}}
{{- define "meshd.apiServer" -}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | toString | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Where SELinux is enforced, a confined container may neither write the host's folders nor serve a socket there. */ -}}
{{- define "meshd.seLinux" -}}
seLinuxOptions:
  level: s0
  type: spc_t
{{- end -}}

{{- define "meshd.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

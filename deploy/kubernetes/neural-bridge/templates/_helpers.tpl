{{- define "neural-bridge.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "neural-bridge.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "neural-bridge.labels" -}}
{{ include "neural-bridge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* A value as the environment holds it: whole numbers without an exponent, lists as JSON. */}}
{{- define "neural-bridge.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else if or (kindIs "slice" .) (kindIs "map" .) }}{{ toJson . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "neural-bridge.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "neural-bridge.locked-down" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "neural-bridge.volumes" -}}
- {name: directory, mountPath: /srv/bridge}
- {name: temporary, mountPath: /tmp}
{{- end }}

{{- define "neural-bridge.database" -}}
- {name: NEURAL_BRIDGE_CLOUD_DATABASE, value: {{ required "database.url: postgresql://user@host/name, which all front ends share" .Values.database.url | quote }}}
{{- with .Values.database.existingSecret }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.database.passwordKey }}
{{- end }}
{{- end }}

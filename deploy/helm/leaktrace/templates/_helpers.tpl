{{- define "leaktrace.name" -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "leaktrace.selector" -}}
app.kubernetes.io/name: leaktrace
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "leaktrace.labels" -}}
{{ include "leaktrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

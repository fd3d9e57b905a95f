{{- /* A release may be called what a Service may not, and what YAML takes for something else than a name. */ -}}
{{- define "warmroute.name" -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if regexMatch "^([0-9].*|true|false|null|yes|no|on|off|y|n)$" $name -}}{{- $name = printf "warmroute-%s" $name -}}{{- end -}}
{{ $name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "warmroute.labels" -}}
app.kubernetes.io/name: warmroute
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "warmroute.selector" -}}
app.kubernetes.io/name: warmroute
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "warmroute.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* What the chart knows of the router's configuration; `config` goes before it. */ -}}
{{- define "warmroute.config" -}}
{{- $namespace := .Values.workers.kubernetes.namespace | default .Release.Namespace -}}
{{- $port := .Values.workers.kubernetes.port | toString -}}
{{- $fleet := dict -}}
{{- if eq .Values.workers.source "dns" -}}{{- $_ := set $fleet "workers_dns" .Values.workers.dns -}}{{- end -}}
{{- if eq .Values.workers.source "list" -}}{{- $_ := set $fleet "workers" .Values.workers.list -}}{{- end -}}
{{- if eq .Values.workers.source "kubernetes" -}}
{{- $service := printf "%s/%s%s" $namespace .Values.workers.kubernetes.service (ternary (printf ":%s" $port) "" (ne $port "")) -}}
{{- $_ := set $fleet "workers_kubernetes" $service -}}
{{- end -}}
{{- $server := dict "host" "0.0.0.0" "port" 8080 "leave_s" .Values.shutdown.leave "drain_s" .Values.shutdown.drain -}}
{{- if .Values.insecureNoAuth -}}{{- $_ := set $server "insecure_no_auth" true -}}{{- end -}}
{{- if .Values.secrets.tls.name -}}
{{- $_ := set $server "tls_cert" "/etc/warmroute/tls/tls.crt" -}}{{- $_ := set $server "tls_key" "/etc/warmroute/tls/tls.key" -}}
{{- end -}}
{{- $sessions := dict "state_dir" "/var/lib/warmroute" -}}
{{- if eq .Values.state.store "none" -}}{{- $_ := set $sessions "store" "none" -}}{{- end -}}
{{- if .Values.secrets.sessions.name -}}{{- $_ := set $sessions "secret_file" "/etc/warmroute/sessions/secret" -}}{{- end -}}
{{- if .Values.secrets.encryption.name -}}{{- $_ := set $sessions "encryption_secret_file" "/etc/warmroute/encryption/secret" -}}{{- end -}}
{{- $auth := dict -}}
{{- if .Values.secrets.keys.name -}}{{- $_ := set $auth "keys_file" "/etc/warmroute/keys/keys.toml" -}}{{- end -}}
{{- if .Values.secrets.salt.name -}}{{- $_ := set $auth "salt_secret_file" "/etc/warmroute/salt/salt" -}}{{- end -}}
{{- $known := dict "server" $server "admin" (dict "host" "0.0.0.0" "port" 8081) "fleet" $fleet "sessions" $sessions "auth" $auth -}}
{{- mergeOverwrite $known (deepCopy .Values.config) | toToml -}}
{{- end }}

{{- define "warmroute.peers" -}}
{{- $rule := dict -}}
{{- if .peers -}}{{- $_ := set $rule .direction .peers -}}{{- end -}}
{{- $ports := list -}}
{{- range .ports -}}{{- $ports = append $ports (dict "protocol" "TCP" "port" (int .)) -}}{{- end -}}
{{- $_ := set $rule "ports" $ports -}}
{{- list $rule | toYaml -}}
{{- end }}

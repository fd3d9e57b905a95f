{{- /* Settings that the chart makes itself, and secrets, which a ConfigMap is no place for: where they are said. */ -}}
{{- define "warmroute.elsewhere" -}}
server.port: service.port
server.leave_s: shutdown.leave
server.drain_s: shutdown.drain
server.tls_cert: secrets.tls
server.tls_key: secrets.tls
server.insecure_no_auth: insecureNoAuth
admin.port: the chart alone
admin.token: secrets.adminToken
auth.keys: secrets.keys
auth.keys_file: secrets.keys
auth.salt_secret: secrets.salt
auth.salt_secret_file: secrets.salt
fleet.workers: workers.list
fleet.workers_dns: workers.dns
fleet.workers_kubernetes: workers.kubernetes
fleet.worker_key: secrets.workerKey
sessions.store: state.store
sessions.state_dir: the chart alone
sessions.secret: secrets.sessions
sessions.secret_file: secrets.sessions
sessions.encryption_secret: secrets.encryption
sessions.encryption_secret_file: secrets.encryption
context.summary_api_key: secrets.summaryKey
context.embed_api_key: secrets.embedKey
tracing.headers: secrets.tracingHeaders
{{- end }}

{{- /* What cannot be right together, said before anything is made. */ -}}
{{- define "warmroute.check" -}}
{{- $state := .Values.state -}}
{{- range $setting, $instead := include "warmroute.elsewhere" . | fromYaml -}}
{{- $path := splitList "." $setting -}}
{{- if hasKey (get $.Values.config (first $path) | default dict) (last $path) -}}
{{- fail (printf "config.%s: is said by %s, which the chart has to know" $setting $instead) -}}
{{- end -}}
{{- end -}}
{{- if contains "://" (get (get .Values.config "context" | default dict) "recall_index" | default "") -}}
{{- fail "config.context.recall_index: a URL is a secret, and said by secrets.recallUrl" -}}
{{- end -}}
{{- if and $state.volume.enabled (eq $state.store "none") -}}
{{- fail "state.volume.enabled=true: with state.store=none nothing is kept" -}}
{{- end -}}
{{- if and .Values.secrets.storeUrl.name (ne $state.store "redis") -}}
{{- fail (printf "secrets.storeUrl.name: not together with state.store=%s" $state.store) -}}
{{- end -}}
{{- if and .Values.secrets.recallUrl.name .Values.secrets.encryption.name -}}
{{- fail "secrets.recallUrl.name: not together with secrets.encryption.name, since PostgreSQL would hold texts in clear" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.min) (int .Values.autoscaling.max) -}}
{{- fail "autoscaling.min: must not be above autoscaling.max" -}}
{{- end -}}
{{- if and (ne $state.store "none") (not $state.volume.enabled) (not $state.disposable) -}}
{{- fail "state.volume.enabled=false: without a disk, acknowledged turns are lost with a pod; set state.disposable=true if that may be" -}}
{{- end -}}
{{- if and (eq $state.store "sqlite") (or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled) -}}
{{- fail "state.store=sqlite: each replica would have sessions of its own; use one replica without autoscaling, or redis" -}}
{{- end -}}
{{- if and (eq $state.store "redis") (not (and .Values.secrets.storeUrl.name .Values.secrets.sessions.name)) -}}
{{- fail "state.store=redis: secrets.storeUrl.name and secrets.sessions.name are required" -}}
{{- end -}}
{{- if not .Values.secrets.adminToken.name -}}
{{- fail "secrets.adminToken.name: required, since the admin port is reached over the network" -}}
{{- end -}}
{{- if eq (ternary 1 0 .Values.insecureNoAuth) (ternary 1 0 (ne .Values.secrets.keys.name "")) -}}
{{- fail "secrets.keys.name: either a Secret with API keys, or insecureNoAuth=true" -}}
{{- end -}}
{{- if and .Values.secrets.keys.name (not .Values.secrets.salt.name) -}}
{{- fail "secrets.salt.name: required with API keys" -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $policy.enabled (not $policy.clients) (ne .Values.service.type "ClusterIP") -}}
{{- fail (printf "networkPolicy.clients: required with service.type=%s, since those outside are no pods of this namespace" .Values.service.type) -}}
{{- end -}}
{{- if and $policy.enabled .Values.secrets.recallUrl.name (not $policy.postgres.peers) -}}
{{- fail "networkPolicy.postgres.peers: required with secrets.recallUrl.name" -}}
{{- end -}}
{{- if and $policy.enabled (not $policy.prometheus) (ne .Values.monitoring.kind "none") -}}
{{- fail (printf "networkPolicy.prometheus: required with monitoring.kind=%s, or nobody can scrape" .Values.monitoring.kind) -}}
{{- end -}}
{{- if and $policy.enabled (not $policy.prometheus) .Values.autoscaling.enabled -}}
{{- fail "networkPolicy.prometheus: required with autoscaling.enabled, since live requests are known by scraping" -}}
{{- end -}}
{{- $source := .Values.workers.source -}}
{{- if and (eq $source "dns") (not .Values.workers.dns) -}}
{{- fail "workers.dns: required with workers.source=dns" -}}
{{- end -}}
{{- if and (eq $source "kubernetes") (not .Values.workers.kubernetes.service) -}}
{{- fail "workers.kubernetes.service: required with workers.source=kubernetes" -}}
{{- end -}}
{{- if and (eq $source "list") (not .Values.workers.list) -}}
{{- fail "workers.list: required with workers.source=list" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.workers.peers) -}}
{{- fail "networkPolicy.workers.peers: required, or routers reach no worker; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (eq $state.store "redis") (not .Values.networkPolicy.redis.peers) -}}
{{- fail "networkPolicy.redis.peers: required with state.store=redis" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (eq $source "kubernetes") (not .Values.networkPolicy.kubernetesApi.peers) -}}
{{- fail "networkPolicy.kubernetesApi.peers: required with workers.source=kubernetes, such as an ipBlock of the API server" -}}
{{- end -}}
{{- $port := ternary (splitList ":" .Values.workers.dns | last) (toString .Values.workers.kubernetes.port) (eq $source "dns") -}}
{{- $ports := list -}}
{{- range $policy.workers.ports -}}{{- $ports = append $ports (int . | toString) -}}{{- end -}}
{{- if and $policy.enabled (ne $source "list") (regexMatch "^[0-9]+$" $port) (not (has $port $ports)) -}}
{{- fail (printf "networkPolicy.workers.ports: %s, where workers serve, is not among them" $port) -}}
{{- end -}}
{{- end }}

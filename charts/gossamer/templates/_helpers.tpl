{{/* Settings that each container of Gossamer's own Deployments has. */}}
{{- define "gossamer.container" -}}
image: {{ .Values.global.image }}
imagePullPolicy: {{ .Values.global.imagePullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 5677
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Spread the replicas of one Deployment over nodes. */}}
{{- define "gossamer.spread" -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector: {matchLabels: {app: {{ . }}}}
{{- end }}

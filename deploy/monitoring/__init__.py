"""Grafana's dashboards, the objectives, and the rules for Prometheus' operator, as code.

``python -m deploy.monitoring write`` generates the dashboards (deploy/grafana/dashboards/*.json) from flow.py,
services.py and servers.py, their ConfigMaps for Kubernetes (deploy/grafana/kustomization.yaml), the rules of the
objectives (deploy/prometheus/slo.yml) from objectives.py, and the operator's rules
(deploy/k8s/components/monitoring/rules.yaml) from both files of rules; ``check`` reports files that differ from these
sources.
"""

"""Grafana's dashboards and the rules for Prometheus' operator, as code.

``python -m deploy.monitoring write`` generates the dashboards (deploy/grafana/dashboards/*.json) from flow.py,
services.py and servers.py, and the operator's rules (deploy/k8s/components/monitoring/rules.yaml) from
deploy/prometheus/rules.yml; ``check`` reports files that differ from these sources.
"""

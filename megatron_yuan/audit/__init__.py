"""Does a model keep to the past? `audit_causality` looks, and names the layer and the part where it does not."""

from __future__ import annotations

from megatron_yuan.audit.causality import audit_causality
from megatron_yuan.audit.report import Leak, Report

__all__ = ["Leak", "Report", "audit_causality"]

"""The audit: which weights two checkpoints differ in, what kind of change it is, which words it is about."""

from surgery.audit.audit import AuditOptions, audit_checkpoints, audit_patch

__all__ = ["AuditOptions", "audit_checkpoints", "audit_patch"]

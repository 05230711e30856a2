"""Ablations from a YAML plan: many runs, one report, and verdicts that say how sure they are."""

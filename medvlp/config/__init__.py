"""Configuration: plain YAML, a pydantic schema without torch, one-level `base:`, `key.path=value` overrides."""

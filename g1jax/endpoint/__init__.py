"""A client of OpenAI-compatible servers: every exchange logged, keys redacted, resumable."""

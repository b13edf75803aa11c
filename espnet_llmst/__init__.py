"""espnet_llmst: LLM-based speech translation on ESPnet's task abstractions."""

__version__ = "0.1.0"

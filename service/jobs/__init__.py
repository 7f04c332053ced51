"""Fine-tuning jobs: files of examples, a queue, and the process that refines adapters."""

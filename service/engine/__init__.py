"""The engines that decode: torch in this process, or vLLM servers."""

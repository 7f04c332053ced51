"""Records of a run: log, metrics, results, artefacts; and how work is spread over processes."""

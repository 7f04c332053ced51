"""Records of a run (log, metrics, results, artefacts), and distribution of work over processes."""

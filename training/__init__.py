"""The offline pipeline, `python -m training COMMAND`: tasks, teachers, fitting, measures and reports."""

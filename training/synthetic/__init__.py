"""The parts of `training.synthetic_tasks`: word lists, inputs, wordings and one module for each few families."""

"""Running a job: batches, the loop over samples and configs, and the description of the run."""

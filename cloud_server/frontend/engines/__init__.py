"""The engines from the front end's side: kept running, given jobs, told apart."""

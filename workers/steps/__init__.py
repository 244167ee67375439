"""The steps of a job that run in a child: each module has `run(spec, context) -> result`, JSON in, JSON out."""

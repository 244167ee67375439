"""The REST API: routes parse, call one use case or view, and answer."""

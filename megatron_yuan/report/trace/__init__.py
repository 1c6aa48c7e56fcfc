"""A trace of some steps: every rank's phases on one axis, for Perfetto and as a page, and what they show."""

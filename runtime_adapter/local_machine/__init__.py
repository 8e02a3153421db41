"""This machine: facts that it tells, probes that measure it, and a hardware document made of both."""

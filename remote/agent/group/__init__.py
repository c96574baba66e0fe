"""The supervisors of one training on several hosts: they come together and agree how it ended."""

"""The FastStream application: topology, thin message handlers, composition root."""

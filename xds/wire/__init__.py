"""Protobuf messages generated from ``protos/``. Never edited: ``make protos`` writes them, a test compares."""

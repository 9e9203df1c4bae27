"""Tests of xds.kubernetes."""

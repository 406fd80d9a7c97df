"""Independent second implementations of the rules, in plain Python, for differential tests.

Written from the rules (the reference and the contracts), not from the code under test. Slow and simple.
"""

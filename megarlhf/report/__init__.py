"""What a run tells people and programs: metrics files, terminal lines and an HTML report.

Imports only the standard library (and TensorBoard's writer when it is switched on).
"""

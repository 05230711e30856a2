"""`blip3o bench`: how fast this package is, against the released procedure and against the machine.

Both sides run in one process, on the same weights and inputs, and must give the same outputs before any time is told.
"""

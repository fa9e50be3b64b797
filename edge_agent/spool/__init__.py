"""The spool: frames on the device's disk, from the moment they are made until their answer.

Calls, in order: `Spool.open` → `accept` (a frame is accepted once it is on the disk) → `waiting`
(what to send next) → `end` (its record is on the disk).
"""

"""`brokervol doctor`: what on this host keeps volumes from working, and what to do about it.

`checks.CHECKS` is the table of all that is looked at. A check looks at a `Site`, which is what was found out about
this host before, and never changes anything: no state, no mount, no lock, no setting.
"""

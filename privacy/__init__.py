"""The judge: budget, plan, accounting, noise, the gate and the ledger.

Nothing in here knows how a model is trained or how a message travels. It says what a release
costs, whether there is room for it, writes that down first, and hands out the only object that
may leave a domain.
"""

"""The stages of a run, each a function of a `session`.

    planned trials -> `training` -> `answering` -> `judging` -> `results` -> `ranking`

`hosting` has the engines that trials and judges are asked by, `metering` tells the budget what
trials took. A stage that trains or asks does only what its trials' folders do not have yet.
"""

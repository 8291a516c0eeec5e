"""Going through the versions of this repository: reading them, judging their record, going back, finding a culprit."""

"""The parts of `manage.py bench`: what is measured, against which floor, and how it is told."""

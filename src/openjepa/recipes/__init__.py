"""Recipes: functions that return an Experiment. Each header says paper, command, hardware, time and measured result."""

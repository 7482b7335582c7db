"""Mutation testing of what a verdict and an output hang on: which changes of the code does no test notice?"""

"""File to file: conversion, streaming, one tensor in memory at a time."""

module berth.test/engine

go 1.26.0

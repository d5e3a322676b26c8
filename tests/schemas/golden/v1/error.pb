
magika2id-ü-1"

error_codewrong_shape"-
error_messageinput 'numbers' has rank 1
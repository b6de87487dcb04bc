/* The descriptor set that protoc wrote, as it is. */
    .section .rodata
    .balign 16
    .globl td_descriptors_data_begin
    .globl td_descriptors_data_end
    .type td_descriptors_data_begin, %object
    .type td_descriptors_data_end, %object
td_descriptors_data_begin:
    .incbin TD_DESCRIPTORS_PATH
td_descriptors_data_end:
    .byte 0
    .size td_descriptors_data_begin, td_descriptors_data_end - td_descriptors_data_begin
    .size td_descriptors_data_end, 1
    .section .note.GNU-stack, "", %progbits

#include <stdio.h>

int main(void)
{
    puts("tensord " TD_VERSION);
    return 0;
}

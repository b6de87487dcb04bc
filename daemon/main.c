#include "daemon/cli/command.h"

#include <unistd.h>

int main(int argc, char **argv)
{
    return td_command_main(argc, argv, environ);
}

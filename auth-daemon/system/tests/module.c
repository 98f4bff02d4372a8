/*
 * A PAM module that misbehaves on request. Tests compile it; nothing installs it.
 *
 * Its arguments say what it does, in this order: rename=NAME, leak=KIB, many=N (messages in one conversation, the
 * last a hidden prompt), say=TEXT, delay (ask for a delay of a minute), state (change what belongs to the process),
 * crash, exit, hang. Then it returns success, or with refuse a wrong password.
 */
#include <fcntl.h>
#include <security/pam_ext.h>
#include <security/pam_modules.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int converse(pam_handle_t *pamh, int count)
{
    const struct pam_conv *conv = NULL;
    struct pam_response *answers = NULL;
    struct pam_message *messages = calloc((size_t)count, sizeof *messages);
    const struct pam_message **list = calloc((size_t)count, sizeof *list);
    int result, at;

    if (!messages || !list || pam_get_item(pamh, PAM_CONV, (const void **)&conv) != PAM_SUCCESS)
        return PAM_BUF_ERR;
    for (at = 0; at < count; at++) {
        messages[at].msg_style = at % 3 == 0 ? PAM_TEXT_INFO : at % 3 == 1 ? PAM_ERROR_MSG : PAM_PROMPT_ECHO_ON;
        messages[at].msg = "one of many";
        list[at] = &messages[at];
    }
    messages[count - 1].msg_style = PAM_PROMPT_ECHO_OFF;
    result = conv->conv(count, list, &answers, conv->appdata_ptr);
    if (result == PAM_SUCCESS) {
        const char *user = NULL;
        pam_get_user(pamh, &user, NULL);
        for (at = 0; at < count; at++) {
            const char *text = answers[at].resp;
            if (messages[at].msg_style == PAM_PROMPT_ECHO_ON && (!text || strcmp(text, user)))
                result = PAM_AUTH_ERR;
            if (messages[at].msg_style == PAM_PROMPT_ECHO_OFF && (!text || strcmp(text, "summersun")))
                result = PAM_AUTH_ERR;
            free(answers[at].resp);
        }
        free(answers);
    }
    free(list);
    free(messages);
    return result;
}

static int act(pam_handle_t *pamh, int argc, const char **argv)
{
    int at, result = PAM_SUCCESS;

    for (at = 0; at < argc; at++) {
        const char *word = argv[at];
        const char *value = strchr(word, '=') ? strchr(word, '=') + 1 : "";
        if (!strncmp(word, "rename=", 7)) {
            result = pam_set_item(pamh, PAM_USER, value);
        } else if (!strncmp(word, "leak=", 5)) {
            size_t size = (size_t)atol(value) * 1024;
            char *lost = malloc(size);
            if (!lost)
                return PAM_BUF_ERR;
            memset(lost, 1, size);
        } else if (!strncmp(word, "many=", 5)) {
            result = converse(pamh, atoi(value));
        } else if (!strncmp(word, "say=", 4)) {
            pam_info(pamh, "%s", value);
        } else if (!strcmp(word, "delay")) {
            pam_fail_delay(pamh, 60000000);
        } else if (!strcmp(word, "state")) {
            sigset_t all;
            char byte;
            sigfillset(&all);
            sigprocmask(SIG_BLOCK, &all, NULL);
            signal(SIGTERM, SIG_IGN);
            signal(SIGPIPE, SIG_DFL);
            umask(0);
            if (chdir("/tmp") || setenv("LD_PRELOAD", "/nonexistent.so", 1) || read(0, &byte, 1) > 0)
                return PAM_SYSTEM_ERR;
            if (open("/dev/null", O_RDONLY) < 0)
                return PAM_SYSTEM_ERR;
        } else if (!strcmp(word, "crash")) {
            *(volatile int *)0 = 1;
        } else if (!strcmp(word, "exit")) {
            exit(0);
        } else if (!strcmp(word, "hang")) {
            for (;;)
                pause();
        } else if (!strcmp(word, "refuse")) {
            result = PAM_AUTH_ERR;
        }
        if (result != PAM_SUCCESS)
            return result;
    }
    return PAM_SUCCESS;
}

int pam_sm_authenticate(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
    (void)flags;
    return act(pamh, argc, argv);
}

int pam_sm_setcred(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
    (void)pamh, (void)flags, (void)argc, (void)argv;
    return PAM_SUCCESS;
}

int pam_sm_acct_mgmt(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
    (void)flags;
    return act(pamh, argc, argv);
}
